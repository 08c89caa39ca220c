"""What is it trained on? Images, captions, codecs, text encoders and the latent store."""

"""What studies of watched models of other libraries say."""

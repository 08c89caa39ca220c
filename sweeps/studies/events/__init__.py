"""When a healthy network is pushed over the edge, does it fail as published, and what decides?"""

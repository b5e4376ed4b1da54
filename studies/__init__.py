"""The miniature study: does dynamic wiring help, under identical conditions, on a small scale?"""

"""The doctor of a model: does what is known of its family hold, on a small copy of it?"""

"""`python -m chatbot_sft.doctor [overrides]`: does this environment carry the run that these compose?

A file for each subject; each of its functions yields findings. None of them imports torch, and what a broken
environment may lack is imported inside functions: the doctor has to answer where nothing else does.
"""

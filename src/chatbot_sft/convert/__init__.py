"""`python -m chatbot_sft.convert FILE`: a training YAML of Axolotl or LLaMA-Factory as an overlay for our config
tree, with a word on each of its keys.

reading → peers (which tool's file it is) → conversion (a table per peer: axolotl, llama_factory) → overlay, told.
`page` makes the tables of docs/coming-from-*.md from the same tables. Nothing here imports torch.
"""

"""The model as llama.cpp and Ollama read it: `export` does it; `file` writes tensors, `vocabulary` the
tokenizer, `ollama` the Modelfile; `llama_cpp` quantises."""

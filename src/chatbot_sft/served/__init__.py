"""Whether a running server says what was trained: `ask` puts the kept prompts to it, `findings` judges what came."""

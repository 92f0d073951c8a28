"""Speech and text encoders: Hugging Face models, a log-mel baseline, untrained stand-ins."""

"""Train a small auto-regressive encoder-decoder from Python, without a recipe: data, model, trainer, save.

python examples/train_from_python.py [--output_dir runs/from_python] [--max_steps 200]
"""

import argparse

from latentlm import AREncoderDecoderConfig, AREncoderDecoderForCausalLM
from latentlm.data import DataConfig, prepare_data
from latentlm.runs import LatentTrainingArguments
from latentlm.training import LatentTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", default="runs/from_python")
parser.add_argument("--max_steps", type=int, default=200)
options = parser.parse_args()

data = prepare_data(DataConfig(dataset="python_docs", tokenizer="bytes", context_length=128))
tokenizer = data.tokenizer
config = AREncoderDecoderConfig(
    hidden_size=64,
    num_attention_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    max_position_embeddings=128,
    embedding_loss="mse",
    vocab_size=len(tokenizer),
    **{name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
)
trainer = LatentTrainer(
    model=AREncoderDecoderForCausalLM(config),
    args=LatentTrainingArguments(options.output_dir, max_steps=options.max_steps, learning_rate=3e-3, logging_steps=20),
    train_dataset=data.train,
    eval_dataset=data.validation,
    processing_class=tokenizer,
    token_bytes=data.token_bytes,
)
trainer.train()
trainer.evaluate()
trainer.save_model()

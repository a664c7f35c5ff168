"""What an installed wheel or sdist must do, in an environment that has nothing else; no test collects this.

cd /tmp && .../empty/bin/python .../tests/smoke_of_the_package.py
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentlm
from latentlm.evaluation import task_folder
from latentlm.training.noise import TABLES_FILE

COMMAND = [sys.executable, "-m", "latentlm"]
RECIPE = """
model: {model_type: ar_encoder_decoder, hidden_size: 16, num_attention_heads: 2, num_encoder_layers: 1,
        num_decoder_layers: 1, max_position_embeddings: 64}
data: {dataset: text.txt, context_length: 64, validation_fraction: 0.2}
training: {max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, eval_strategy: steps, eval_steps: 2,
           sample_prompts: 0, report_to: none, use_cpu: true, output_dir: run}
"""


def main() -> None:
    assert latentlm.__version__ == importlib.metadata.version("latentlm")
    assert "site-packages" in Path(latentlm.__file__).parts, "this is the repository, not an installed package"
    assert (Path(latentlm.__file__).parent / "py.typed").exists()
    assert list(task_folder().glob("*.yaml")) and TABLES_FILE.exists()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "text.txt").write_text("The river flows to the sea.\n\n" * 200, encoding="utf-8")
        (place / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        subprocess.run([*COMMAND, "train", "recipe.yaml"], cwd=place, check=True)
        model = AutoModelForCausalLM.from_pretrained(place / "run", trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(place / "run", trust_remote_code=True)
        inputs = tokenizer("The", return_tensors="pt", add_special_tokens=False)
        torch.manual_seed(0)
        written = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
        assert written.shape[1] == inputs.input_ids.shape[1] + 4
        refused = subprocess.run([*COMMAND, "compare"], cwd=place, capture_output=True, text=True)
        assert refused.returncode == 1 and "needs a clone of the repository" in refused.stderr
    print(f"latentlm {latentlm.__version__}: trains, loads, generates")


if __name__ == "__main__":
    main()

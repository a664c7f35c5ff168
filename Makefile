# Two commands on a fresh machine: `make quickstart` and `make test`. Both keep their environment in .venv.
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, …) choose where packages come from, a CPU build of torch for example.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# ARGS="--architecture abstractinator --seed 1 --override hidden_size=192", say.
ARGS ?=

.PHONY: quickstart speedrun test test-slow lint site clean

quickstart: $(INSTALLED)
	$(BIN)/latentlm quickstart

speedrun: $(INSTALLED)
	$(BIN)/python eval/speedrun.py $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 10

# One test at a time: these start several processes or train, and would slow each other down.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --durations 10

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# Strict: a page outside of the navigation, a broken link or a broken anchor is an error. No torch: sources are read.
site: .venv-site/.installed
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --strict

.venv-site/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-site
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > .venv-site/requirements.txt
	.venv-site/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r .venv-site/requirements.txt
	touch $@

# Installed anew only when the requirements change; an install cut short leaves no stamp and is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[embeddings,eval,export,peft,tracking,dev]'
	touch $@

# Trained runs are not touched.
clean:
	rm -rf .venv .venv-site site build dist .pytest_cache .ruff_cache src/*.egg-info
	find src tests eval examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# make demo: stage 1 and stage 2 of a tiny model on embedded soundscapes, and
#   how well their frozen features tell sounds apart (linear evaluation).
# make test: lint, types and all tests.
# Both set up .venv first; PYTHON chooses the interpreter (3.11 or later).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
LOCK := -c requirements.lock

.PHONY: demo test clean

$(VENV)/demo: requirements.txt requirements-plot.txt requirements.lock
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) $(LOCK) -r requirements.txt -r requirements-plot.txt
	touch $@

$(VENV)/test: requirements-dev.txt $(VENV)/demo
	$(PIP) $(LOCK) -r requirements-dev.txt
	touch $@

demo: $(VENV)/demo
	$(RUN) -m sslam_jax.main --config=configs/stage1.py:demo
	$(RUN) -m sslam_jax.main --config=configs/stage2.py:demo
	$(RUN) tools/probe.py random runs/stage1-demo runs/stage2-demo logmel \
	  --train=soundscapes=600,length=2.5 \
	  --test=soundscapes=300,length=2.5,seed=1 \
	  --features=rows --out=runs/demo-probe
	@echo "Checkpoints, metrics and logs: runs/stage1-demo, runs/stage2-demo"
	@echo "Pictures of what the model saw, and of the losses:"
	@ls runs/stage1-demo/pictures/* runs/stage2-demo/pictures/*

test: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache

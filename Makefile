PY ?= python3
V := .venv/bin
ARGS ?= experiment=demo

.venv/.ok: pyproject.toml constraints.txt
	@test -x $(V)/python || $(PY) -m venv .venv
	$(V)/python -m pip install -q uv
	$(V)/uv pip install -q --python $(V)/python -c constraints.txt -e ".[all,test]"
	@touch $@

.PHONY: demo test check
demo: .venv/.ok  ## the whole comparison on the embedded model
	$(V)/python -m harness -m $(ARGS)

test: .venv/.ok  ## lint, format, types, then the quick suite
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/mypy
	$(V)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

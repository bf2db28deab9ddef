PY ?= python3
V := .venv/bin
ARGS ?= experiment=demo
export NO_MKDOCS_2_WARNING := 1

.venv/.ok: pyproject.toml constraints.txt
	@echo "set-up 1 of 2: a virtual environment in .venv"
	@test -x $(V)/python || $(PY) -m venv .venv
	@$(V)/python -m pip install -q uv
	@echo "set-up 2 of 2: packages into .venv, about 6 GB with torch and its CUDA libraries"
	@echo "               (those that uv has in its cache are not downloaded again)"
	@$(V)/uv pip install --python $(V)/python -c constraints.txt -e ".[all,test,docs]"
	@touch $@

.PHONY: demo docs test
demo: .venv/.ok  ## the whole comparison on the embedded model
	@echo "demo: a sweep on the embedded model, some minutes; Ctrl-C and the same command go on later"
	@$(V)/python -m harness -m $(ARGS)

test: .venv/.ok docs  ## lint, format, types, the site, then the quick suite
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/mypy
	OMP_NUM_THREADS=1 $(V)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

docs: .venv/.ok  ## the documentation, into site/, without a network
	$(V)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html; to search, serve it: $(V)/python -m http.server -d site"

# make demo    sets up everything, trains a student alone and distilled, prints the table
# make test    sets up everything and runs the tests, without the slow ones: five minutes
# make slow    runs the slow ones: ten minutes
# make soak    runs the long form of the tests that have one (an hour)
# make install sets up .venv alone
# make stacks  builds each supported stack in an environment of its own and runs the tests in it (hours)
# make docs    builds the documentation into site/, warnings as errors
# make check   the whole gate: format, lint, types, import contracts, documentation, all tests with coverage
.PHONY: demo test slow soak stacks install lint docs check

install:
	@tools/install.sh >/dev/null

demo:
	@python=$$(tools/install.sh) && $$python tools/demo.py

test:
	@python=$$(tools/install.sh test) && OMP_NUM_THREADS=1 $$python -m pytest \
	    --numprocesses=2 --dist=loadfile -m "not slow" $(OPTIONS)

slow:
	@python=$$(tools/install.sh test) && OMP_NUM_THREADS=1 $$python -m pytest \
	    --numprocesses=2 --dist=loadfile -m slow $(OPTIONS)

soak:
	@python=$$(tools/install.sh test) && MMKD_SOAK=1 OMP_NUM_THREADS=1 $$python -m pytest -m soak \
	    --numprocesses=2

stacks:
	@$${PYTHON:-python3} tools/stacks.py

lint:
	@python=$$(tools/install.sh test) && bin=$$(dirname $$python) && export PATH="$$bin:$$PATH" && \
	$$python -m ruff format --check . && $$python -m ruff check . && $$python -m mypy && lint-imports && \
	hadolint Dockerfile

docs:
	@python=$$(tools/install.sh test) && NO_MKDOCS_2_WARNING=1 $$python -m mkdocs build --strict

check:
	@.ci/run

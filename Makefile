# make demo    sets up everything, trains a student alone and distilled, prints the table
# make test    sets up everything and runs the tests
# make install sets up .venv alone
# make check   the whole gate: format, lint, types, import contracts, tests
.PHONY: demo test install lint check

install:
	@tools/install.sh >/dev/null

demo:
	@python=$$(tools/install.sh) && $$python tools/demo.py

test:
	@python=$$(tools/install.sh test) && OMP_NUM_THREADS=1 $$python -m pytest \
	    --numprocesses=2 --dist=loadfile --cov --cov-report=term --cov-fail-under=90

lint:
	@python=$$(tools/install.sh test) && bin=$$(dirname $$python) && export PATH="$$bin:$$PATH" && \
	$$python -m ruff format --check . && $$python -m ruff check . && $$python -m mypy && lint-imports

check: lint test

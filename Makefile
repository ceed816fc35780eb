# make run     text from the default model, from nothing but Python, a C++ compiler and the package index
# make build   the package, installed for development        make test     the fast tests
# make check   style, types, layers, sanitizers, NEON         make slow     the slow tests
# make oracles comparison with torch, transformers, llama.cpp make wheel    a wheel, run without a compiler
# make clients the server with clients of others, and schemathesis; make soak: an hour of mixed traffic
# make page    the chat page in Chromium (Debian's chromium);  make screenshots: the pictures in docs/page
# make bench   speed of MODEL (make bench-model), and what adapters cost beside a merged model and llama.cpp (bench-adapters)
# make gate    kernels against a calibration loop
# make versus  Puna and llama.cpp in turn, same files; versus-vllm: and vLLM
# make conformance  the table of docs/models.md, from a run of its comparisons
# make divergence  how far from float32 logits are, beside llama.cpp; writes the table of docs/numerics.md
# make quantization  what each recipe of puna quantize loses, beside llama.cpp's; writes the table of docs/quantize.md
# make clean   removes what was built (make distclean: the environments too)

PYTHON ?= python3
MODEL ?= smollm2
PROMPT ?= Explain in three sentences why the sky is blue.
MAX_TOKENS ?= 200

VENV := .venv
ORACLES := .venv-oracles
CLIENTS := .venv-clients
BROWSER := .venv-browser
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE_SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f -not -path 'csrc/tests/*' 2>/dev/null)
PYTHON_SOURCES := $(shell find src -name '*.py')
PAGE_SOURCES := $(wildcard src/puna/entrypoints/server/page/*.*)
PYTEST_FLAGS ?= -q
REPLAY_CASES := tests/kernels/cases
CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc)
export CMAKE_BUILD_PARALLEL_LEVEL

.PHONY: run build dev test slow clients page screenshots soak check lint sanitize sanitize-address sanitize-thread neon oracles conformance wheel bench bench-model bench-adapters gate versus versus-vllm divergence quantization oracles-ready clean distclean
.DELETE_ON_ERROR:

run: build
	@$(BIN)/puna pull $(MODEL) >/dev/null
	@printf '> %s\n\n' "$(PROMPT)"
	@$(BIN)/puna generate $(MODEL) -p "$(PROMPT)" --max-tokens $(MAX_TOKENS)

build: $(VENV)/.bytecode

dev: $(VENV)/.dev $(VENV)/.bytecode

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Puna needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

# Build tools go into the environment itself: an isolated build would compile everything anew each time.
$(VENV)/.tools: $(VENV)/.created tools/constraints.txt
	@echo "installing build tools into $(VENV) ..."
	@$(PIP) install --quiet -c tools/constraints.txt scikit-build-core nanobind cmake ninja
	@touch $@

$(VENV)/.built: $(VENV)/.tools $(NATIVE_SOURCES)
	@echo "compiling the core and installing puna (a minute or two) ..."
	@flock $(VENV)/.lock $(PIP) install --quiet --no-build-isolation -c tools/constraints.txt -e .
	@touch $@

# Python keeps bytecode by itself only where its environment lets it; compiling the source doubles the time of a start.
$(VENV)/.bytecode: $(VENV)/.built $(PYTHON_SOURCES)
	@$(BIN)/python -m compileall -q src/puna
	@touch $@

$(VENV)/.dev: $(VENV)/.built tools/constraints.txt
	flock $(VENV)/.lock $(PIP) install --quiet --no-build-isolation -c tools/constraints.txt -e '.[dev]'
	@touch $@

# In two processes: few tests keep two processors busy. Slow tests have the machine for themselves, since some measure time.
test: dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -n 2 --dist worksteal --ignore=tests/oracle -m "not slow and not oracle"

slow: dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --ignore=tests/oracle -m "slow and not oracle"

check: lint sanitize neon

lint: dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports --no-cache

oracles-ready: $(ORACLES)/.built

oracles: $(ORACLES)/.built
	$(ORACLES)/bin/python -m pytest $(PYTEST_FLAGS) tests/oracle

# The table in docs/models.md, from a run of its comparisons.
conformance: $(ORACLES)/.built
	$(ORACLES)/bin/python -m pytest $(PYTEST_FLAGS) tests/oracle/test_conformance_table.py -o junit_family=xunit1 --junitxml=build/conformance.xml
	$(ORACLES)/bin/python tools/conformance_table.py build/conformance.xml

$(ORACLES)/.created: $(VENV)/.tools tools/oracles.txt tools/oracles_alone.txt
	test -x $(ORACLES)/bin/python || $(BIN)/python -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet -r tools/oracles.txt
	tools/json_schema_suite.sh $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet --no-deps --no-build-isolation -r tools/oracles_alone.txt
	@touch $@

$(ORACLES)/.llama_cpp: $(ORACLES)/.created tools/llama_cpp.sh
	tools/llama_cpp.sh $(ORACLES)
	@touch $@

# The oracles get a wheel that .venv builds: a second development install would share the build directory and spoil it.
$(ORACLES)/.built: $(ORACLES)/.llama_cpp $(NATIVE_SOURCES) $(PYTHON_SOURCES)
	rm -rf build/oracles-wheel
	flock $(VENV)/.lock $(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir build/oracles-wheel .
	$(ORACLES)/bin/python -m pip install --quiet --no-deps --force-reinstall build/oracles-wheel/puna-*.whl
	@touch $@

# Clients of others, for Python and for Node, against the server.
clients: $(CLIENTS)/.built
	$(CLIENTS)/bin/python -m pytest $(PYTEST_FLAGS) tests/clients

$(CLIENTS)/.created: $(VENV)/.tools tools/clients.txt tools/node/package-lock.json
	test -x $(CLIENTS)/bin/python || $(BIN)/python -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet -r tools/clients.txt
	@mkdir -p $(CLIENTS)/node && cp tools/node/package.json tools/node/package-lock.json $(CLIENTS)/node/
	@if command -v npm >/dev/null; then cd $(CLIENTS)/node && npm ci --silent --no-audit --no-fund; \
		else echo "clients: npm is not installed; those for Node are left out"; fi
	@touch $@

$(CLIENTS)/.built: $(CLIENTS)/.created $(NATIVE_SOURCES) $(PYTHON_SOURCES)
	rm -rf build/clients-wheel
	flock $(VENV)/.lock $(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir build/clients-wheel .
	$(CLIENTS)/bin/python -m pip install --quiet --no-deps --force-reinstall build/clients-wheel/puna-*.whl
	@touch $@

# The chat page in a real browser, which is the system's: Debian's package chromium.
page: $(BROWSER)/.built
	$(BROWSER)/bin/python -m pytest $(PYTEST_FLAGS) tests/page

screenshots: $(BROWSER)/.built
	PYTHONPATH=tests $(BROWSER)/bin/python tools/screenshots.py docs/page

$(BROWSER)/.created: $(VENV)/.tools tools/browser.txt
	test -x $(BROWSER)/bin/python || $(BIN)/python -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet -r tools/browser.txt
	@touch $@

$(BROWSER)/.built: $(BROWSER)/.created $(NATIVE_SOURCES) $(PYTHON_SOURCES) $(PAGE_SOURCES)
	rm -rf build/browser-wheel
	flock $(VENV)/.lock $(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir build/browser-wheel .
	$(BROWSER)/bin/python -m pip install --quiet --no-deps --force-reinstall build/browser-wheel/puna-*.whl
	@touch $@

# The wheel is tried where no compiler can be found: an environment of its own, and nothing else on the path.
wheel: $(VENV)/.tools
	rm -rf build/wheel-venv dist/*.whl
	$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	$(BIN)/python -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet -c tools/constraints.txt dist/puna-*.whl
	cd build && env -i HOME="$$HOME" XDG_CACHE_HOME="$$XDG_CACHE_HOME" PATH="$$PWD/wheel-venv/bin" \
		puna generate smollm2 -p "$(PROMPT)" --max-tokens 20
	ls -l dist

# The core replays the recorded kernel cases with AddressSanitizer and UndefinedBehaviorSanitizer, and with ThreadSanitizer.
sanitize: sanitize-address sanitize-thread

sanitize-address sanitize-thread: sanitize-%: $(VENV)/.tools
	@mkdir -p build
	$(BIN)/cmake -S . -B build/sanitize-$* -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPUNA_PYTHON=OFF -DPUNA_REPLAY=ON -DPUNA_SANITIZE=$* >build/sanitize-$*.log || { cat build/sanitize-$*.log; exit 1; }
	$(BIN)/cmake --build build/sanitize-$*
	build/sanitize-$*/puna_replay $(REPLAY_CASES)

# The same cases on AArch64: cross-compiled, and run by qemu where this is another machine.
neon: $(VENV)/.tools
	@mkdir -p build
	@if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then \
		echo "neon: left out; g++-aarch64-linux-gnu and qemu-user are not installed"; exit 0; fi; \
	$(BIN)/cmake -S . -B build/neon -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DPUNA_PYTHON=OFF -DPUNA_REPLAY=ON >build/neon.log || { cat build/neon.log; exit 1; }; \
	$(BIN)/cmake --build build/neon && \
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/neon/puna_replay $(REPLAY_CASES)

soak: dev
	PYTHONPATH=tests $(BIN)/python benchmarks/soak.py --seconds 3600

bench: bench-model bench-adapters

bench-model: build
	@$(BIN)/puna pull $(MODEL) >/dev/null
	@$(BIN)/puna bench $(MODEL)
	@printf '\nWhere the time goes: puna bench %s --test tg64 --trace trace.json. Beside llama.cpp: make versus.\n' $(MODEL)

bench-adapters: dev
	@$(BIN)/python benchmarks/adapters.py

gate: dev
	@$(BIN)/python benchmarks/gate.py

versus: dev
	@$(BIN)/python benchmarks/versus_llamacpp.py

versus-vllm: dev
	@$(BIN)/python benchmarks/versus_vllm.py

divergence: oracles-ready
	@PYTHONPATH=tests $(ORACLES)/bin/python benchmarks/divergence.py

quantization: oracles-ready
	@PYTHONPATH=tests $(ORACLES)/bin/python benchmarks/quantization.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.built $(VENV)/.bytecode $(VENV)/.dev $(ORACLES)/.built $(CLIENTS)/.built $(BROWSER)/.built
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.so' -delete

distclean: clean
	rm -rf $(VENV) $(ORACLES) $(CLIENTS) $(BROWSER)

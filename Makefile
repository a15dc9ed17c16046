# `make test` and `make demo` need Python 3.10 to 3.12 with its venv module and set up the rest.
#   VENV=path   where the environment is     PYTHON=path   the Python that creates it
#   ARGS='...'  more arguments for pytest
override VENV := $(or $(VENV),.venv)
PYTHON ?=
OTHER_TORCH =
export VENV PYTHON OTHER_TORCH

# The tests whose results a release of torch can change.
TORCH_TESTS = tests/ops tests/backbones tests/weights tests/deploy tests/engine/test_safe_runner.py tests/test_stacks.py

# Both ends of what setup.py promises, each in an environment of its own. Everything else is as locked.
%-oldest: override VENV := $(VENV)-oldest
%-oldest: OTHER_TORCH = torch==2.7.1 torchvision==0.22.1
%-newest: override VENV := $(VENV)-newest
%-newest: OTHER_TORCH = torch==2.14.1 torchvision==0.29.1
ENVIRONMENTS = env env-oldest env-newest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help $(ENVIRONMENTS) overlay test test-slow test-oldest test-newest test-gpu demo lint

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

PY := "$$VENV/bin/python"
UV := $(shell uv --version 2>/dev/null)
ifdef UV
CREATE = uv venv -q --allow-existing --python "$$python" "$$VENV"
INSTALL = uv pip install --python $(PY)
else
CREATE = "$$python" -m venv "$$VENV"
INSTALL = $(PY) -m pip install --disable-pip-version-check --progress-bar off
# Of pip's many lines, show only enough to tell that it is working.
BRIEF = | sed -unE '/Downloading .*[0-9]{3}(\.[0-9]+)? MB/p; s/^(Installing).*/\1 .../p'
endif

# Builds mmcv without its compiled operators even where the build can see torch.
$(ENVIRONMENTS) overlay: export MMCV_WITH_OPS := 0

# One set-up at a time: a second make, or a pip that outlived its make, would damage the first one's work.
define SETUP
	die() { echo "error: $$*" >&2; exit 1; }
	exec 9<Makefile
	flock -n 9 || { echo 'waiting for another set-up to end ...'; flock 9; }
endef

# $VENV/.res2net_mm records what was installed, or "unfinished" during an installation. An
# environment is deleted only if it is unfinished or cannot run: it may hold a user's work.
env:  ## only the environment
$(ENVIRONMENTS):
	@$(SETUP)
	stamp=$$VENV/.res2net_mm
	state() { { cat requirements.lock setup.py res2net_mm/version.py; pwd; $(PY) -V; printf %s "$$OTHER_TORCH"; } 2>&1 | sha256sum; }
	suits() { "$$1" -c 'import sys, tarfile; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12) and hasattr(tarfile, "data_filter")))' 2>/dev/null; }
	runs() { $(PY) -V >/dev/null 2>&1; }
	another='name another place with VENV=path'

	found=$$(cat "$$stamp" 2>/dev/null || true)
	[[ -z $$PYTHON ]] || suits "$$PYTHON" || die "PYTHON=$$PYTHON is not a Python 3.10 to 3.12"
	[[ -z $$PYTHON ]] || ! runs || [[ $$($(PY) -V) == "$$("$$PYTHON" -V)" ]] \
		|| die "$$VENV has $$($(PY) -V), PYTHON is $$("$$PYTHON" -V): $$another"
	[[ $$found != "$$(state)" ]] || { echo "environment ready in $$VENV"; exit; }
	[[ -z $$(ls -A "$$VENV" 2>/dev/null) || -e $$stamp || -e $$VENV/pyvenv.cfg ]] \
		|| die "$$VENV exists and is not a Python environment: $$another"

	if [[ $$found == unfinished ]] || ! runs; then
		for python in "$${PYTHON:-python3}" python3.12 python3.11 python3.10; do
			suits "$$python" && break || python=
		done
		[[ $$python ]] || die 'no Python 3.10 to 3.12 found: install one, or name it with PYTHON=path'
		echo "creating the environment in $$VENV with $$("$$python" -V)"
		rm -rf "$$VENV"
		mkdir -p "$$VENV"
		echo unfinished >"$$stamp"
		if ! log=$$($(CREATE) 2>&1); then
			[[ $$log != *'ensurepip is not'* ]] && "$$python" -c 'import ensurepip, venv' 2>/dev/null && die "$$log"
			die "$$python has no venv module: apt install python3-venv (or the package for its version)"
		fi
	fi
	suits $(PY) || die "$$VENV has $$($(PY) -V), but 3.10 to 3.12 is needed: $$another"

	[[ -z $$found ]] || echo unfinished >"$$stamp"
	echo "installing requirements.lock $${OTHER_TORCH:+with $$OTHER_TORCH }(up to 3 GB to download, 6 GB on disk)"
	lock=requirements.lock
	if [[ $$OTHER_TORCH ]]; then  # another torch brings its own CUDA packages and triton
		lock=$$VENV/requirements.lock
		grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' requirements.lock >"$$lock"
	fi
	{
		$(if $(UV),,{ $(PY) -m pip -V || $(PY) -m ensurepip; } >/dev/null 2>&1 &&
		$(INSTALL) -q $$(grep ^pip== requirements.lock) &&)
		$(INSTALL) --no-deps -r "$$lock" $(BRIEF) &&
		{ [[ -z $$OTHER_TORCH ]] || $(INSTALL) $$OTHER_TORCH $(BRIEF); } &&
		PYTHONWARNINGS=ignore $(INSTALL) -q --no-deps --no-build-isolation -e . &&
		site=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
		rm -rf "$$site/tests" &&
		ln -sf "$$PWD/res2net_mm/ops/mmcv_ext/finder.py" "$$site/_res2net_mm_finder.py" &&
		echo 'import _res2net_mm_finder' >"$$site/res2net_mm.pth"  # as in a wheel
	} || die "not installed, see above ($$(df -h --output=avail "$$VENV" | tail -n 1 | tr -d ' ') free in $$VENV); make tries again"
	state >"$$stamp"
	echo "environment ready in $$VENV"

overlay: env
	@$(SETUP)
	target=$$VENV/openmmlab
	state() { cat requirements-openmmlab.lock; $(PY) -V; }
	cmp -s <(state) "$$target/.state" && exit
	echo "installing the original OpenMMLab packages into $$target"
	rm -rf "$$target" "$$target.new"
	$(INSTALL) -q --no-deps --no-build-isolation --target "$$target.new" -r requirements-openmmlab.lock \
		|| die 'not installed, see above; make tries again'
	rm -rf "$$target.new/tests"  # a package by that name would hide our tests
	state >"$$target.new/.state"
	mv "$$target.new" "$$target"

test: overlay  ## the fast tests, on both stacks
	@$(PY) -m pytest -m 'not slow' -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: overlay  ## the tests that take minutes each
	@$(PY) -m pytest -m slow $(ARGS)

test-oldest: env-oldest  ## the tests that depend on torch, with the oldest supported release
test-newest: env-newest  ## the same, with the newest supported release
test-oldest test-newest:
	@$(PY) -m pytest -m 'not slow' -n auto --maxprocesses 4 --dist loadfile $(TORCH_TESTS) $(ARGS)

test-gpu: env  ## the tests that need a CUDA GPU, and benchmarks on it, in 8 minutes
	@$(PY) -c 'import torch; assert torch.cuda.is_available(), "no CUDA GPU here"'
	timeout 200 $(PY) -m pytest -m gpu $(ARGS)
	mkdir -p work_dirs/cuda
	for task in backbone train dcn deform_conv; do
		timeout 60 $(PY) tools/benchmark.py $$task --device cuda --rounds 5 --json work_dirs/cuda/$$task.json \
			|| echo "error: the benchmark '$$task' did not end well"
	done

demo: env  ## train on a synthetic set and write COCO mAP, pictures and a loss curve
	@$(PY) tools/demo.py --work-dir work_dirs/demo

lint: env  ## ruff
	@$(PY) -m ruff check .

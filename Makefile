# mtdiff: `make course` sets up and runs the quickstart, `make test` sets up and passes the tests. `make help` lists the rest.

.DEFAULT_GOAL := help
.PHONY: help course test lab explorer notebooks slides site badges lint table benchmark gpu clean
VENV := .venv
PY := $(VENV)/bin/python
PAGE := build/00_quickstart.html
export JUPYTER_PLATFORM_DIRS := 1

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The first Python on the path that is new enough and can make virtual environments, or a word on what is missing.
$(PY):
	@for p in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10 python; do \
	  command -v $$p >/dev/null 2>&1 || continue; \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { old="$$old $$p ($$($$p -V 2>&1))"; continue; }; \
	  $$p -c 'import venv, ensurepip' 2>/dev/null || { bare="$$bare $$p"; continue; }; \
	  echo "setting up $(VENV) with $$($$p -V)"; $$p -m venv $(VENV) && exit 0; \
	done; \
	echo "mtdiff needs Python 3.10 or newer with the venv module."; \
	[ -z "$$old" ] || echo "  too old:$$old"; \
	[ -z "$$bare" ] || echo "  without venv:$$bare (on Debian and Ubuntu: apt install python3-venv)"; \
	echo "  install one, or name one: make PYTHON=/path/to/python"; exit 1

$(VENV)/.course: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	@touch $@

$(VENV)/.site: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[site]'
	@touch $@ $(VENV)/.course

$(VENV)/.test: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.course $(VENV)/.site

course: $(VENV)/.course  ## set up .venv, run the quickstart, write it as a web page
	@$(PY) tests/notebooks.py --html $(PAGE) 00_quickstart
	@echo "open this page in a browser: $(CURDIR)/$(PAGE)"

# Files of tests that run at a time, each on one thread.
JOBS := 2
test: $(VENV)/.test lint  ## set up .venv, lint, run all tests and check every notebook (JOBS=4: four files at a time)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile
	OMP_NUM_THREADS=1 $(PY) -m pytest --nbval-lax --nbval-current-env -n $(JOBS) --dist loadfile notebooks

lint: $(VENV)/.test  ## style of code and docstrings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lab: $(VENV)/.course  ## open the course in JupyterLab
	$(VENV)/bin/jupyter lab notebooks

explorer: $(VENV)/.course  ## open everything that moves, on one page
	$(VENV)/bin/jupyter lab notebooks/explorer.ipynb

notebooks: $(VENV)/.course  ## execute the notebooks whose code or checkpoint changed; carry text and tags over
	$(PY) tests/notebooks.py

# NAMES="00_quickstart 02_one_space_many_modalities": those alone.
NAMES :=
slides: $(VENV)/.course  ## write the notebooks as slides, one HTML file each, which need no network
	$(PY) tests/notebooks.py --slides build/slides $(NAMES)

# REPOSITORY=owner/name on GitHub adds links to Colab and Binder, ADDRESS is where the site will be: workflows give both.
REPOSITORY :=
ADDRESS :=
site: $(VENV)/.site  ## write the course, its results and the library's docstrings as a web site, which needs no network
	@$(PY) tests/website.py build/site --repository "$(REPOSITORY)" --address "$(ADDRESS)"
	@echo "open this page in a browser: $(CURDIR)/build/site/index.html"

badges: $(VENV)/.site  ## links to Colab and Binder, and notebooks that run there (make badges REPOSITORY=owner/name)
	$(PY) tests/website.py --badges "$(or $(REPOSITORY),$(error make badges REPOSITORY=owner/name))"
	$(PY) tests/notebooks.py

SEEDS := 0 1 2
# STEPS=5000 trains shorter than the full budget: the figures in data/results say how long.
STEPS :=
LABEL := $(addprefix image-label-digits-,fade-in from-zero constant own-channels image-only unshared \
  conditional classifier noisy-classifier learned generator token light heavy labels-10 labels-1 classifier-10 classifier-1)
SCENES := $(addprefix image-label-shapes16-,fade-in classifier)
PLANTED := 60 80
REPRESENTED := $(addprefix image-representation-shapes16-,lifted own-channels image-only predicted told \
  random caption features segments segments-told segments-predicted)
TRANSITION := $(addprefix image-transition-shapes16-,transition conditional regression sdedit)
MASKED := $(addprefix masked-image-shapes16-,masked plain augment own-channels)
ANY := $(addprefix any-to-any-shapes16-,shared own-channels unshared missing-50 missing-80 \
  caption-to-image image-to-caption segmentation-to-image)
DENSE := $(addprefix dense-shapes16-,generalist tuned generator depth segmentation instances restoration \
  depth-long segmentation-long instances-long restoration-long)
VAE := $(addprefix multimodal-vae-polydigits-,mopoe-diffusion mopoe product mixture mt)
RESTORED := $(addprefix restoration-shapes16-,told transition)
RESULTS := $(LABEL) $(SCENES) $(PLANTED:%=image-label-planted%-fade-in) $(REPRESENTED) $(TRANSITION) $(MASKED) $(ANY) \
  $(DENSE) $(VAE) $(RESTORED)
MTDIFF := MTDIFF_THREADS=1 $(VENV)/bin/mtdiff

# A run is runs/EXPERIMENT/DATA/VARIANT-SEED; its result file data/results/EXPERIMENT-DATA-VARIANT.json has all seeds.
define RULES
$(foreach s,$(SEEDS),runs/$(1)/$(2)/$(3)-$(s)/model.safetensors): runs/$(1)/$(2)/$(3)-%/model.safetensors: | $(VENV)/.course
	$(MTDIFF) train $(1) --data $(2) --variant $(3) --seed $$* --budget full $(if $(filter tuned,$(3)),--from runs/$(1)/$(2)/generator-$$*) $(if $(STEPS),--steps $(STEPS)) --out $$(@D)
data/results/$(1)-$(2)-$(3).json: $(foreach s,$(SEEDS),runs/$(1)/$(2)/$(3)-$(s)/model.safetensors)
	$(MTDIFF) evaluate $(1) --data $(2) --models $$(^D) --n $(4) --out $$@
endef
$(foreach v,$(LABEL),$(eval $(call RULES,image-label,digits,$(v:image-label-digits-%=%),1000)))
$(foreach v,$(SCENES),$(eval $(call RULES,image-label,shapes16,$(v:image-label-shapes16-%=%),500)))
$(foreach s,$(PLANTED),$(eval $(call RULES,image-label,planted$(s),fade-in,1000)))
$(foreach v,$(REPRESENTED),$(eval $(call RULES,image-representation,shapes16,$(v:image-representation-shapes16-%=%),500)))
$(foreach v,$(TRANSITION),$(eval $(call RULES,image-transition,shapes16,$(v:image-transition-shapes16-%=%),200)))
$(foreach v,$(MASKED),$(eval $(call RULES,masked-image,shapes16,$(v:masked-image-shapes16-%=%),1000)))
$(foreach v,$(RESTORED),$(eval $(call RULES,restoration,shapes16,$(v:restoration-shapes16-%=%),40)))
$(foreach v,$(ANY),$(eval $(call RULES,any-to-any,shapes16,$(v:any-to-any-shapes16-%=%),200)))
$(foreach v,$(DENSE),$(eval $(call RULES,dense,shapes16,$(v:dense-shapes16-%=%),400)))
# The tuned one begins with the generator of its seed.
$(foreach s,$(SEEDS),runs/dense/shapes16/tuned-$(s)/model.safetensors): runs/dense/shapes16/tuned-%/model.safetensors: runs/dense/shapes16/generator-%/model.safetensors
$(foreach v,$(VAE),$(eval $(call RULES,multimodal-vae,polydigits,$(v:multimodal-vae-polydigits-%=%),120)))

table: $(RESULTS:%=data/results/%.json)  ## train every variant with three seeds and judge them (make -j2 table: hours on two cores)

benchmark: $(VENV)/.test  ## time our U-Net, count evaluations of each solver, draw any to any in other ways, restore without training, find boxes, add a modality
	$(PY) tests/benchmarks/unet.py --out data/results/benchmark-unet-cpu.json
	$(PY) tests/benchmarks/samplers.py --out data/results/benchmark-samplers.json
	$(PY) tests/benchmarks/any_to_any.py --n 200 --out data/results/benchmark-any-to-any-shapes32.json
	$(PY) tests/benchmarks/any_to_any.py --data scenes32 --only given orders --n 200 --out data/results/benchmark-any-to-any-scenes32.json
	$(PY) tests/benchmarks/zero_shot.py mixture --out data/results/benchmark-zero-shot-mixture.json
	$(PY) tests/benchmarks/zero_shot.py shapes16 --n 40 --out data/results/benchmark-zero-shot-shapes16.json
	$(PY) tests/benchmarks/zero_shot.py digits --n 40 --out data/results/benchmark-zero-shot-digits.json
	$(PY) tests/benchmarks/zero_shot.py photographs --n 6 --seeds 1 --out data/results/benchmark-zero-shot-photographs.json
	$(PY) tests/benchmarks/boxes.py --out data/results/benchmark-boxes.json
	$(PY) tests/benchmarks/add_modality.py --steps 500 --n 100 --out data/results/benchmark-add-modality.json

# GPU_PART=2 is the second part; with PYTHON=python3 that one is used, and no virtual environment.
GPU_PART := 1
GPU_OUT := build/gpu
gpu: $(if $(PYTHON),,$(VENV)/.test)  ## all that needs a GPU, in nine minutes of one (then GPU_PART=2: photographs)
	$(or $(PYTHON),$(PY)) tests/benchmarks/gpu.py --part $(GPU_PART) --out $(GPU_OUT)

clean:  ## remove the virtual environment and all that was built
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

# The front door. `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

segue := target/release/segue
suite := target/release/segue-suite

# For image and run. TRUST: a file of public keys that the image trusts. SIGN: the private key that
# its bundle is signed with.
APP ?= hello
VERSION ?=
FEATURES ?=
TRUST ?=
SIGN ?=
VCPUS ?= 1
MEMORY ?= 64
TYPE ?= hvm
CMDLINE ?=
RAMDISK ?= $(wildcard target/images/$(APP).bundles)
# For bench. README: write the figures into README, too.
QUICK ?=
README ?=
# For test and bench: only tests on Xen, or figures, whose names contain one of these words. For fuzz:
# only these targets.
FILTER ?=
# For fuzz: how long each target is run. For fuzztest: how many are run at a time.
SECONDS ?= 600
FUZZ_JOBS ?= 2

# What files in images are said to be as old as: the same for the same commit, wherever it is built.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)

# What cargo needs to build, check or document code for the image target.
for_image := --profile image --target x86_64-unknown-hermit -Zbuild-std=std,panic_abort \
	-Zbuild-std-features=optimize_for_size,compiler-builtins-mem
image_packages = -p segue -p segue-kernel $(patsubst apps/%/Cargo.toml,-p %,$(wildcard apps/*/Cargo.toml))
# Apps with a library run on a host, too: that is how it is tested.
image_only_apps = $(filter-out $(patsubst apps/%/src/lib.rs,%,$(wildcard apps/*/src/lib.rs)), \
	$(patsubst apps/%/Cargo.toml,%,$(wildcard apps/*/Cargo.toml)))
host_packages = --workspace $(patsubst %,--exclude %,$(image_only_apps))

define build_app
$(segue) build $(APP) $(if $(VERSION),--image-version $(VERSION)) $(if $(FEATURES),--feature $(FEATURES)) \
	$(if $(TRUST),--trust '$(TRUST)')
$(if $(SIGN),$(segue) sign --key '$(SIGN)' target/images/$(APP).bundle)
endef

.PHONY: help
help: ## List the targets
	@echo 'Segue: a unikernel runtime for Xen that replaces its own image while it runs.'
	@echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' |
		while IFS=$$'\t' read -r target what; do printf '  make %-8s %s\n' "$$target" "$$what"; done
	@echo
	@echo 'Examples:'
	@echo '  make image APP=clock VERSION=0.2.0 FEATURES=date'
	@echo '  make image APP=kv TRUST=release.pub SIGN=release    # segue keygen release'
	@echo '  make run APP=hello TYPE=pvh VCPUS=2 MEMORY=128'
	@echo "  make run APP=clock VCPUS=2 CMDLINE='-- --every 500 --ticks 2 --until 5'"
	@echo '  make test FILTER=switch'
	@echo 'A Xen that stays up for all of them: target/release/segue lab up'
	@echo 'A Xen host of your own in place of the lab: SEGUE_XEN_HOST=root@host make test'

.PHONY: setup
setup: target/.setup ## Install what building and the lab need (once)

# Once for each version of the toolchain, of this file and of the lab's list of packages.
target/.setup: rust-toolchain.toml Makefile tools/lab/src/setup.rs
	@version=$$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
	cannot() {
		echo "setup: $$1" >&2
		echo "setup: Segue needs Rust $$version with rust-src, rustfmt and clippy. Either" >&2
		echo "    rustup toolchain install $$version --profile minimal -c rust-src -c rustfmt -c clippy" >&2
		echo "(rustup itself: https://rustup.rs), or, on Debian, as root, its newer one:" >&2
		echo "    apt-get install rustc-web cargo-web rust-web-src" >&2
		exit 1
	}
	if command -v rustup >/dev/null; then
		# Not by rustup's automatic installation, which may be switched off.
		rustup toolchain list | grep "^$$version-" >/dev/null || {
			echo "setup: installing Rust $$version"
			rustup toolchain install "$$version" --profile minimal || cannot "Rust $$version cannot be had"
		}
		installed=$$(rustup component list --toolchain "$$version" --installed)
		for component in rust-src rustfmt clippy; do
			grep "^$$component" <<<"$$installed" >/dev/null || {
				echo "setup: adding $$component to Rust $$version"
				rustup component add "$$component" --toolchain "$$version" || cannot "$$component cannot be had"
			}
		done
	elif command -v cargo >/dev/null && [ -d "$$(rustc --print sysroot)/lib/rustlib/src/rust/library/std" ]; then
		echo "setup: no rustup; using $$(rustc --version)"
	else
		cannot 'there is neither rustup nor a Rust with the sources of its library'
	fi
	{ command -v cc && command -v c++; } >/dev/null || {
		[ "$$(id -u)" = 0 ] || {
			echo 'setup: a C compiler (to link host programs) or a C++ compiler (for libFuzzer) is missing;' >&2
			echo 'setup: as root: apt-get install gcc g++ libc6-dev' >&2
			exit 1
		}
		apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev
	}
	cargo build --release -p segue-cli
	[ -n "$${SEGUE_XEN_HOST:-}" ] || $(segue) lab setup
	mkdir -p target
	touch $@

.PHONY: tools
tools: setup ## Build the host programs
	@cargo build --release -p segue-cli -p segue-suite

.PHONY: image
image: tools ## Build one app: APP= [VERSION= FEATURES= TRUST= SIGN=]; prints sizes
	@$(build_app)

.PHONY: images
images: tools ## Build all images that tests use
	@$(suite) images

.PHONY: run
run: tools ## Run an app on Xen: APP= [VCPUS= MEMORY= TYPE=hvm|pvh CMDLINE= RAMDISK=]
	@$(build_app)
	$(segue) run target/images/$(APP).$(if $(filter pvh,$(TYPE)),elf,img) \
		--type $(TYPE) --vcpus $(VCPUS) --memory $(MEMORY) \
		$(if $(RAMDISK),--ramdisk $(RAMDISK)) --cmdline '$(CMDLINE)'

.PHONY: demo
demo: tools ## See servers under load upgraded live on a real Xen (four minutes)
	@$(suite) demo

.PHONY: test
test: tools ## All tests: host, fuzz targets, then on a real Xen [FILTER=]
	@# An image is linked by one processor: the other ones test meanwhile.
	$(suite) images >target/images.log 2>&1 &
	images=$$!
	$(MAKE) hosttest $(if $(FILTER),,fuzztest FUZZ_JOBS=1) || { kill $$images; exit 1; }
	wait $$images || { cat target/images.log; echo 'make: the images were not built' >&2; exit 1; }
	$(suite) test $(FILTER)
	echo
	echo 'make test: all host tests passed, and the tests on a real Xen; make live runs some in full.'

.PHONY: live
live: tools ## Live upgrades under all kinds of load, in full, on a real Xen (20 minutes)
	@$(suite) test live:: upgrade:: devices::

.PHONY: hosttest
hosttest: setup ## The tests that need no Xen
	@echo 'make: host tests'
	cargo test -q

# Miri is part of nightly toolchains only. What it runs is code over memory that is handed over.
.PHONY: miri
miri: setup ## Host tests of what is handed over, under Miri
	@command -v rustup >/dev/null || {
		echo 'miri: Miri needs rustup and a nightly toolchain: https://rustup.rs, then' >&2
		echo '    rustup toolchain install nightly --profile minimal -c miri -c rust-src' >&2
		exit 1
	}
	rustup toolchain list | grep '^nightly-' >/dev/null ||
		rustup toolchain install nightly --profile minimal
	[ "$$(rustup component list --toolchain nightly --installed | grep -cE '^(miri|rust-src)')" = 2 ] ||
		rustup component add miri rust-src --toolchain nightly
	echo 'make: host tests under Miri'
	# Regions that nobody takes are never freed on a host. Isolation would keep proptest from its files.
	# Few cases: it is the kind of access that counts here, not the values.
	export MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-ignore-leaks' PROPTEST_CASES=1
	cargo +nightly miri test -q --target-dir target/miri -p segue-kernel --lib -- \
		replace::record replace::region replace::values memory::paging net::tcp::arena
	cargo +nightly miri test -q --target-dir target/miri -p segue --lib

.PHONY: fuzztest
fuzztest: setup
	@cargo run -q -p segue-fuzz -- run --seconds 20 --jobs $(FUZZ_JOBS)

.PHONY: fuzz
fuzz: setup ## Fuzz all that reads bytes from outside, for long [SECONDS=600 each, FILTER=targets]
	@cargo run -q -p segue-fuzz -- run --seconds $(SECONDS) $(FILTER)

.PHONY: check
check: hosttest tools ## Host tests and one domain (five minutes)
	@$(suite) check
	echo
	echo 'make check: host tests passed, and a domain replaced its image on a real Xen.'

.PHONY: soak
soak: tools ## An hour of mixed load and 1,000 switches: nothing grows [MINUTES=60]
	@$(suite) soak $(MINUTES)

.PHONY: bench
bench: tools ## Figures beside Linux's, to target/bench/report.html [QUICK=1 FILTER= README=1]
	@$(suite) bench $(if $(QUICK),--quick) $(if $(README),--readme) $(FILTER)

.PHONY: lint
lint: setup ## Format, clippy and documentation, for the host and for images
	@echo 'make lint: format'
	cargo fmt --check
	echo 'make lint: clippy for the host'
	cargo clippy $(host_packages) --all-targets -- -D warnings
	echo 'make lint: clippy for images'
	RUSTC_BOOTSTRAP=1 cargo clippy $(for_image) $(image_packages) -- -D warnings
	echo 'make lint: documentation'
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps $(host_packages) --exclude segue-kernel --exclude segue
	RUSTC_BOOTSTRAP=1 RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --no-deps $(for_image) -p segue-kernel
	RUSTC_BOOTSTRAP=1 RUSTDOCFLAGS='-D warnings' cargo doc --no-deps $(for_image) -p segue

.PHONY: clean
clean: ## Remove all that was built, the lab too
	@if [ -x $(segue) ]; then $(segue) lab clean; fi
	cargo clean

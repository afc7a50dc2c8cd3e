#!/usr/bin/env bash
# A chapter, as it comes from GitHub, in an environment like Colab's: its setup cell must install what is missing, leave
# numpy, jax and TensorFlow as they are, and need no restart.
#
#     PYTHON=python3.13 tools/try_colab.sh [notebooks/00_start_here.ipynb …]
#
# Downloads about a gigabyte. The versions are Colab's of August 2026, from github.com/googlecolab/backend-info.
set -euo pipefail
cd "$(dirname "$0")/.."
chapters=("${@:-notebooks/00_start_here.ipynb}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3.13}" -m venv "$work/colab"
pip=("$work/colab/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install \
    numpy==2.1.3 jax==0.7.2 jaxlib==0.7.2 tensorflow==2.20.0 tensorflow-text==2.20.1 keras==3.13.2 keras-hub==0.26.0 \
    matplotlib==3.10.0 scipy==1.16.3 ml_dtypes==0.6.0 h5py==3.16.0 protobuf==5.29.6 grain==0.2.18 array_record==0.8.3 \
    huggingface_hub==1.27.0 kagglehub==1.0.2 kagglesdk==0.1.37 safetensors==0.8.0 tokenizers==0.22.2 \
    click==8.4.2 pillow==11.3.0 platformdirs==4.11.3 psutil==5.9.5 requests==2.32.4 rich==13.9.4 tqdm==4.67.3 \
    sentencepiece==0.2.2 regex==2025.11.3 optree==0.19.1 pyyaml==6.0.3 aiohttp==3.14.3 entrypoints==0.4 tenacity==9.1.4 \
    ipykernel==6.17.1 ipython==7.34.0 nbclient==0.10.4 nbconvert==7.17.1 nbformat==5.11.1 setuptools==75.2.0

# What makes it Colab for the setup cell: the module google.colab, loaded before the first cell (jax asks it for its
# output). This repository stands in for its address, and each chapter lies in a folder alone.
packages=$("$work/colab/bin/python" -c 'import site; print(site.getsitepackages()[0])')
mkdir -p "$packages/google/colab" "$work/source"
echo "output = None" >"$packages/google/colab/__init__.py"
echo "import google.colab" >"$packages/colab.pth"
cp -R optbook pyproject.toml README.md LICENSE "$work/source"
for chapter in "${chapters[@]}"; do
    name=$(basename "$chapter")
    mkdir -p "$work/notebooks/$name"
    sed -E -e "s#https://github.com/[^ ]+/archive/main.zip#$work/source#" \
        -e "s#https://github.com/[^ ]+/raw/main/#file://$PWD/#" "$chapter" >"$work/notebooks/$name/$name"
done

"${pip[@]}" freeze | sort >"$work/before.txt"
failed=0
for chapter in "$work"/notebooks/*/*.ipynb; do
    "$work/colab/bin/jupyter" nbconvert --to notebook --execute --inplace "$chapter" || failed=1
done
"${pip[@]}" freeze | sort >"$work/after.txt"
echo "What the setup cell changed:"
diff "$work/before.txt" "$work/after.txt" || true
for package in numpy jax jaxlib tensorflow tensorflow-text; do
    diff <(grep -i "^$package==" "$work/before.txt") <(grep -i "^$package==" "$work/after.txt") >/dev/null ||
        { echo "The setup cell changed $package."; exit 1; }
done
exit $failed

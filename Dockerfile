# What every node of a cluster runs: the system packages, and exactly the versions of constraints.txt (about 8 GB, most of it
# torch with its CUDA libraries; the GPU driver is the host's).
#
#   docker build -t REGISTRY/pretune:0.1.0 . && docker push REGISTRY/pretune:0.1.0
FROM python:3.11-slim-bookworm

# FFCV is compiled: against OpenCV and TurboJPEG. rsync and ssh are what `ray up` talks through, wget what KubeRay asks for a
# node's health; git names the version.
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      make g++ pkg-config libopencv-dev libturbojpeg0-dev rsync openssh-client wget git procps \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/pretune
# The environment first: it changes less often than the code.
COPY Makefile environment.sh pyproject.toml constraints.txt README.md LICENSE ./
COPY platform ./platform
COPY search_spaces ./search_spaces
COPY trainers ./trainers
RUN PIP_NO_CACHE_DIR=1 make env
COPY . .
ENV PATH="/opt/pretune/.venv/bin:$PATH"
# Login shells, in which `ray up` and KubeRay start Ray, set PATH anew from /etc/profile.
RUN echo 'export PATH="/opt/pretune/.venv/bin:$PATH"' > /etc/profile.d/pretune.sh

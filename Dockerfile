FROM python:3.11-slim-bookworm
# libgomp1: LightGBM's threads
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY src src
COPY models/README.md models/README.md
COPY data/README.md data/README.md
# Kernels are compiled at the first start and kept on the data volume.
RUN useradd --create-home aegis && chown -R aegis /app
USER aegis
ENV PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/app/data/kernels
VOLUME /app/data /app/models
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s CMD ["python", "-c", "import os,urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\",\"8080\")}/health/live', timeout=4)"]
CMD ["python", "-m", "src.main"]

# A server for portable models: ONNX Runtime, no torch. SageMaker's contract: `serve`, port 8080, /opt/ml/model.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/imgcls
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --upgrade 'pip>=25.1' && pip install -c constraints.txt --group serving
COPY conf conf
COPY imgcls imgcls
RUN pip install --no-deps . && useradd --system imgcls

USER imgcls
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ping', timeout=2)"]
ENTRYPOINT ["python", "-m", "imgcls.serve"]
CMD ["serve"]

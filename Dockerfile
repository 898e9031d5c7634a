# The app on a CPU: docker build -t suma . && docker run -p 7860:7860 -v FOLDER:/videos:ro suma --videos /videos
FROM python:3.12-slim
WORKDIR /suma
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN useradd --create-home suma && mkdir /cache && chown suma /cache
USER suma
ENV SUMA_HOST=0.0.0.0 SUMA_PORT=7860 SUMA_CACHE=/cache GRADIO_ANALYTICS_ENABLED=False
VOLUME /cache
EXPOSE 7860
ENTRYPOINT ["python", "app.py"]

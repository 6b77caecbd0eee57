"""The HTTP server: OpenAI's protocol in front of a batching engine that decodes by diffusion (extra ``serve``)."""

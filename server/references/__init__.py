"""What the deployment publishes about itself: references, schemas, an OpenAPI document and a page to read.

Everything is made of the proto alone: descriptors, our options, the rules of buf.validate and the
comments (compat.md 1, 2). `documents.documents` is the way in.
"""

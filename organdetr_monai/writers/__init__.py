"""What is written: one module for each format, each with one function that takes `Detections`.

``schema`` (of detections.json, which `Detections.save` writes), ``slicer``, ``preview``, ``crops``, ``table`` and
``dicom_sr``.
Nothing is imported here, so that a format costs only those who use it.
"""

"""DICOM in and out: series found and gated, pixels read, segmentations written on the source instances.

Reading: files -> headers (in a guarded child) -> series and stacks -> choice -> gate -> pixels -> DicomScan.
Writing: labels on the source slices -> segmentation, report, capture -> read back -> renamed.
Nothing here puts a patient's name, number, date or a description into a message, a log or a file name.
"""

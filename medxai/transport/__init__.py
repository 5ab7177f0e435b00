"""The way of studies in and of results out: DIMSE and DICOMweb, the spool, the outbox."""

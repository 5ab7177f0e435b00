"""What leaves of an explained subject: tables, maps, pictures, DICOM objects and a page."""

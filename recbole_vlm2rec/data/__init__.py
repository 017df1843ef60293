"""The data room: the catalogue of titles and pictures, RecBole's data sets, and the evaluation candidates that all models share."""

"""The data room: the catalogue of titles and pictures, RecBole's data sets, and the candidates that all models share."""

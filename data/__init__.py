"""Media files, frames and folders of videos; only `data.av` knows PyAV."""

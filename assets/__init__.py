"""Files that ship with the package (the open head, face models, examples); provenance in docs/provenance.md."""

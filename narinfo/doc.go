// Package narinfo reads and writes the formats of a substitute server of GNU
// Guix: the narinfo, the text that describes one store item and signs it; the
// store paths, hashes and signatures in it; and the head of a nar that holds a
// single file.
// It does no input or output, and leaves it to clients which keys to trust. It keeps
// narinfos byte for byte, refuses names that lead out of the storage, and detects damage,
// see [Narinfo.CheckSignature].
//
// Errors are one line; they name the field, what was found and what is allowed.
package narinfo

// Package narinfo reads and writes the formats of a substitute server of GNU Guix: the narinfo,
// a signed text that describes one store item; the store paths, hashes and signatures in it;
// and the head of a nar of a single file.
//
// It does no input or output. It keeps narinfos byte for byte, refuses names that lead out of
// the storage, and detects damage and unauthorized signers, see [Narinfo.CheckSignature].
//
// Errors are one line with the field, the value found and what is allowed.
package narinfo

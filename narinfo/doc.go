// Package narinfo reads and writes the formats of a substitute server of GNU
// Guix: the narinfo, the text that describes one store item and signs it; the
// store paths, hashes and signatures in it; and the head of a nar that holds a
// single file.
//
// It does no input or output, and it trusts no key and distrusts none: whoever
// downloads does that. What it guards is that a narinfo is handed on byte for
// byte, that nothing in one that came from elsewhere leads out of the storage,
// and that damage can be noticed, see [Narinfo.CheckSignature].
//
// Errors are one line; they name the field, what was found and what is allowed.
package narinfo

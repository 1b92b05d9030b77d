package compression

import "errors"

// Refused reports whether an error of NewReader, or of its result, means that this program can't read the data although it
// may be valid: the compression is unknown, or the dictionary or window too large.
func Refused(err error) bool {
	var unknown ErrUnknown
	return errors.As(err, &unknown) || errors.Is(err, ErrTooLarge)
}

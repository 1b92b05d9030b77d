package compression

import "errors"

// Refused says whether an error of NewReader, or of what it returned, is about what is not read here at all: another
// compression, or a dictionary or window that is too large. The data may be good for others.
func Refused(err error) bool {
	var unknown ErrUnknown
	return errors.As(err, &unknown) || errors.Is(err, ErrTooLarge)
}

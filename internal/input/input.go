// Package input has the error for a request that is invalid.
package input

// Error says that a request cannot be carried out on any machine: a Dockerfile that does not parse or does not exist, an option that
// contradicts the Dockerfile, a name that is not a valid reference. Its message is that of its cause.
type Error struct{ Err error }

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

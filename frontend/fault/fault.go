// Package fault has those faults of Dockerfiles that programs tell apart, as types: what serves builds to clients says them in the words
// that the clients know.
package fault

import (
	"errors"
	"fmt"
)

// ErrFromVariable is the error of a COPY --from that has a variable.
var ErrFromVariable = errors.New("variable expansion is not supported for --from")

// EntitlementError is a privilege that an instruction asks for, and that the build was not given.
type EntitlementError struct {
	// What asks for it: "RUN --network=host".
	What string
	// Entitlement is the name of the privilege: "network.host".
	Entitlement string
}

func (e *EntitlementError) Error() string { return e.What + " is not allowed" }

// PlatformError is a FROM --platform that is not one.
type PlatformError struct {
	// Expr is the value as it is written, and Err an *llb.PlatformError about what it has become.
	Expr string
	Err  error
}

func (e *PlatformError) Error() string { return "--platform: " + e.Err.Error() }

// Unwrap returns Err.
func (e *PlatformError) Unwrap() error { return e.Err }

// EpochError is a SOURCE_DATE_EPOCH that says no time.
type EpochError struct {
	// Value is what was given, and Why says what is wrong with it.
	Value, Why string
}

func (e *EpochError) Error() string {
	return fmt.Sprintf("invalid SOURCE_DATE_EPOCH %q: %s", e.Value, e.Why)
}

// EpochStageError is a stage that SOURCE_DATE_EPOCH names and that has no time.
type EpochStageError struct {
	// Why says what such a stage has to be, and Based that it is FROM something else than scratch.
	Why   string
	Based bool
}

func (e *EpochStageError) Error() string { return "the stage that SOURCE_DATE_EPOCH names " + e.Why }

// Package shared is what the services have in common.
package shared

import "fmt"

// Greet prints a greeting of a service.
func Greet(service string) { fmt.Println("greetings from the", service) }

// Kiln builds OCI images from Dockerfiles. Its command line is in cmd/internal.
package main

import (
	"os"

	"github.com/kilnbuild/kiln/cmd/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], nil)) }

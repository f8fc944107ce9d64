//go:build deps

package main

// What is built and run of BuildKit, so that go.mod and go.sum have what that needs.
import (
	_ "github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/cmd/buildctl"
	_ "github.com/moby/buildkit/cmd/buildkitd"
	_ "github.com/moby/buildkit/frontend/dockerfile"
	_ "github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend"
)

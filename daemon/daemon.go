// Package daemon serves BuildKit's API: clients of BuildKit, such as docker buildx, build with kiln through it. It turns requests into
// jobs of package build, and knows neither how a step runs nor how an image is made.
package daemon

package returned

import (
	"bytes"
	"encoding/json"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/llb"
)

// KeyConfig is the key of the metadata of a result that has the configuration of the image, and keyBaseConfig that of its base image. Those
// of one of several images have its name behind a slash.
const (
	KeyConfig     = "containerimage.config"
	keyBaseConfig = "containerimage.base.config"
)

// RawConfig returns the configuration of an image by its name, "" where there is only one, as metadata have it; nil for none. The error is
// the client's.
func RawConfig(metadata map[string][]byte, name string) ([]byte, error) {
	return raw(metadata, KeyConfig, name)
}

func raw(metadata map[string][]byte, key, name string) ([]byte, error) {
	config := metadata[key+"/"+name]
	if name == "" || config == nil {
		config = metadata[key]
	}
	if bytes.Equal(bytes.TrimSpace(config), []byte("null")) {
		return nil, status.Error(codes.InvalidArgument, "invalid null image config for export")
	}
	return config, nil
}

// Config returns the configuration of an image by its name, and that of its base image as far as it is known. The platform is of, or if
// that is nil the configuration's own, or the server's. The error is the client's.
func Config(metadata map[string][]byte, name string, of *ocispec.Platform) (c, base *dockerspec.DockerOCIImage, err error) {
	c, base = &dockerspec.DockerOCIImage{}, &dockerspec.DockerOCIImage{}
	for key, into := range map[string]*dockerspec.DockerOCIImage{KeyConfig: c, keyBaseConfig: base} {
		data, err := raw(metadata, key, name)
		if err != nil {
			return nil, nil, err
		}
		if data == nil {
			continue
		}
		if err := json.Unmarshal(data, into); err != nil {
			return nil, nil, status.Errorf(codes.InvalidArgument, "%s: invalid image config: %v", key, err)
		}
	}
	switch {
	case of != nil:
		c.Platform = *of
	case (c.OS == "") != (c.Architecture == ""):
		return nil, nil, status.Error(codes.InvalidArgument, "invalid image config: os and architecture must be specified together")
	case c.OS == "":
		host := llb.Host()
		c.Platform = ocispec.Platform{OS: host.OS, Architecture: host.Architecture, Variant: host.Variant}
	}
	return c, base, nil
}

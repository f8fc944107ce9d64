package client

import (
	"context"
	"fmt"

	sessionexporter "github.com/moby/buildkit/session/exporter"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

// maxExporters bounds the exporters that a client adds to a build.
const maxExporters = 64

// Exporters asks the client what else is to be done with a result, which metadata and the ids of refs describe: none if it has no answer to
// such questions.
func (c *Client) Exporters(ctx context.Context, metadata map[string][]byte, refs []string) ([]*sessionexporter.ExporterRequest, error) {
	calling, caller, err := c.call(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := sessionexporter.NewExporterClient(caller.Conn()).FindExporters(calling,
		&sessionexporter.FindExportersRequest{Metadata: metadata, Refs: refs})
	switch {
	case silent(err):
		return nil, nil
	case err != nil:
		return nil, failed(calling, err)
	case len(answer.Exporters) > maxExporters:
		return nil, fmt.Errorf("the client wants %d outputs, more than the %d that are allowed", len(answer.Exporters), maxExporters)
	}
	return answer.Exporters, nil
}

// Exported tells the client what was exported.
func (c *Client) Exported(ctx context.Context, response map[string]string) error {
	calling, caller, err := c.call(ctx)
	if err != nil {
		return err
	}
	_, err = sessionexporter.NewExporterClient(caller.Conn()).FinalizeExport(calling,
		&sessionexporter.FinalizeExportRequest{ExporterResponse: response})
	if err == nil || silent(err) {
		return nil
	}
	return failed(calling, err)
}

// silent reports whether an error says that the client has no answer.
func silent(err error) bool {
	code := grpcerrors.Code(err)
	return err != nil && (code == codes.Unavailable || code == codes.Unimplemented)
}

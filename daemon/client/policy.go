package client

import (
	"context"

	"github.com/moby/buildkit/sourcepolicy/policysession"
)

// CheckPolicy asks the client's source policy about a source.
func (c *Client) CheckPolicy(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
	calling, caller, err := c.call(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := policysession.NewPolicyVerifierClient(caller.Conn()).CheckPolicy(calling, req)
	if err != nil {
		return nil, failed(calling, err)
	}
	return resp, nil
}

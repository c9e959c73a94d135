package pgwire

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"
)

// SendCancel asks the server to cancel what that backend does, and waits until the server has
// taken notice: it closes the connection then (protocol-flow, Canceling Requests in Progress).
func SendCancel(ctx context.Context, addr string, pid uint32, key []byte,
	dial func(ctx context.Context, network, addr string) (net.Conn, error),
) error {
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("send cancel request: %w", err)
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d)
	} else {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	}
	if _, err := conn.Write(AppendCancelRequest(nil, pid, key)); err != nil {
		return fmt.Errorf("send cancel request: %w", err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1))
	return nil
}

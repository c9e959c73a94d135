package pgwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// cancelTimeout bounds a SendCancel whose context has no deadline.
const cancelTimeout = 10 * time.Second

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
	_ = conn.SetDeadline(time.Now().Add(cancelTimeout))
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(AppendCancelRequest(nil, pid, key)); err != nil {
		return fmt.Errorf("send cancel request: %w", err)
	}
	var late net.Error
	if _, err = io.ReadFull(conn, make([]byte, 1)); errors.As(err, &late) && late.Timeout() {
		return fmt.Errorf("send cancel request: wait for the server: %w", err)
	}
	return nil
}

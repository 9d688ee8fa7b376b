package calls

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Explained gives an error's code and message, and the request id, to quote when asking about it.
func Explained(err error) (code codes.Code, message, requestID string) {
	answer := status.Convert(err)
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.RequestInfo); ok {
			requestID = info.GetRequestId()
		}
	}
	return answer.Code(), answer.Message(), requestID
}

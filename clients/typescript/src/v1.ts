/** Messages, enums and services, as generated from the proto files: their comments are the contract. */
export * from "./gen/pacenote/v1/job_pb.js";
export * from "./gen/pacenote/v1/job_service_pb.js";
export * from "./gen/pacenote/v1/queue_service_pb.js";
export * from "./gen/pacenote/v1/worker_service_pb.js";
/** Details of errors: `error.findDetails(ErrorInfoSchema)` has the reason. */
export * from "./gen/google/rpc/error_details_pb.js";
